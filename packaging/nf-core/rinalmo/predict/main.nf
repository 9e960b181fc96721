process RINALMO_PREDICT {
    tag "$meta.id"
    label 'process_medium'

    conda "${moduleDir}/environment.yml"
    container "${ workflow.containerEngine == 'singularity' && !task.ext.singularity_pull_docker_container ?
        'https://depot.galaxyproject.org/singularity/rinalmo:0.2.0--pyhdfd78af_0' :
        'biocontainers/rinalmo:0.2.0--pyhdfd78af_0' }"

    input:
    tuple val(meta), path(sequences)
    path model

    output:
    tuple val(meta), path("*.csv"), emit: predictions
    path "versions.yml", emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    def prefix = task.ext.prefix ?: "${meta.id}"
    """
    rinalmo predict \
        ${model} ${sequences} \
        --output ${prefix}.csv \
        --threads ${task.cpus} \
        --quiet \
        ${args}

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        rinalmo: \$(rinalmo --version | sed 's/.* //')
    END_VERSIONS
    """

    stub:
    def prefix = task.ext.prefix ?: "${meta.id}"
    """
    touch ${prefix}.csv

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        rinalmo: \$(rinalmo --version | sed 's/.* //')
    END_VERSIONS
    """
}
