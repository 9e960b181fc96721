"""Snakemake wrapper for `rinalmo score`."""

import shlex

from snakemake.shell import shell

extra = snakemake.params.get("extra", "")  # noqa: F821
log = snakemake.log_fmt_shell(stdout=True, stderr=True)  # noqa: F821
mutations = snakemake.input.get("mutations")  # noqa: F821
variants = f"--mutations {shlex.quote(mutations)}" if mutations else "--all-single"

shell(
    "rinalmo score {snakemake.input.sequences:q} {variants} --output {snakemake.output[0]:q}"
    " --threads {snakemake.threads} --quiet {extra} {log}"
)
