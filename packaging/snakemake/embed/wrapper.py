"""Snakemake wrapper for `rinalmo embed`."""

from snakemake.shell import shell

extra = snakemake.params.get("extra", "")  # noqa: F821
log = snakemake.log_fmt_shell(stdout=True, stderr=True)  # noqa: F821

shell(
    "rinalmo embed {snakemake.input.sequences:q} --output {snakemake.output[0]:q}"
    " --threads {snakemake.threads} --quiet {extra} {log}"
)
