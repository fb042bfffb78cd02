# What a run needs and nothing here makes. Where such a file is missing, the job says what to fetch; `update` keeps
# snakemake from removing one that is there when the job is forced.
rule bring:
    output:
        update("{brought}"),
    log:
        "logs/bring/{brought}.log",
    wildcard_constraints:
        brought=one_of(CELLS.brought),
    localrule: True
    params:
        missing=lambda wildcards: f"{wildcards.brought}: missing; {CELLS.brought[wildcards.brought]}",
    message:
        "look for {wildcards.brought}"
    shell:
        "test -s {output:q} || {{ echo {params.missing:q} > {log:q}; exit 1; }}"
