process RINALMO_FOLD {
    tag "$meta.id"
    label 'process_medium'

    conda "${moduleDir}/environment.yml"
    container "${ workflow.containerEngine == 'singularity' && !task.ext.singularity_pull_docker_container ?
        'https://depot.galaxyproject.org/singularity/rinalmo:0.2.0--pyhdfd78af_0' :
        'biocontainers/rinalmo:0.2.0--pyhdfd78af_0' }"

    input:
    tuple val(meta), path(sequences)

    output:
    tuple val(meta), path("*.dbn"), emit: structures
    path "versions.yml", emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    def prefix = task.ext.prefix ?: "${meta.id}"
    """
    rinalmo fold \
        ${sequences} \
        --output ${prefix}.dbn \
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
    touch ${prefix}.dbn

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        rinalmo: \$(rinalmo --version | sed 's/.* //')
    END_VERSIONS
    """
}
