# The table of a dataset: a row a cell, mean and spread over the seeds.
rule table:
    input:
        CELLS.metrics,
    output:
        paths.TABLE,
    log:
        "logs/table/{dataset}{of_suite}.log",
    benchmark:
        "benchmarks/table/{dataset}{of_suite}.tsv"
    resources:
        mem_mb=memory(1_000),
        runtime=10,
    params:
        code=CELLS.code("table"),
        convergence=refusing(CELLS.convergence),
    message:
        "table of {wildcards.dataset}{wildcards.of_suite}"
    shell:
        "quest table {wildcards.dataset:q} {input:q} {params.convergence} --output {output:q} > {log:q} 2>&1"


rule table_all:
    input:
        TARGETS["table"],
