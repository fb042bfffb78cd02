# A table of config/published.yaml on a dataset: its cells, run where they are missing, beside the published numbers.
rule paper:
    input:
        metrics=refusing(CELLS.cells_of_table),
        published=str(published.PUBLISHED_FILE),
    output:
        json=paths.PAPER,
        csv=paths.PAPER_CSV,
        markdown=paths.PAPER_MARKDOWN,
    log:
        "logs/paper/{dataset}/{table}.log",
    benchmark:
        "benchmarks/paper/{dataset}/{table}.tsv"
    wildcard_constraints:
        dataset="[^/]+",  # unknown names are answered with the known ones
        table="[^/]+",
    resources:
        mem_mb=memory(1_000),
        runtime=10,
    params:
        code=CELLS.code("paper", *TITLES),
        convergence=refusing(CELLS.convergence),
    message:
        "the paper's table {wildcards.table} on {wildcards.dataset}"
    shell:
        "quest paper {wildcards.table:q} {wildcards.dataset:q} {input.metrics:q} --published {input.published:q}"
        " {params.convergence} --output {output.json:q} --csv {output.csv:q} --markdown {output.markdown:q} > {log:q} 2>&1"


rule paper_all:
    input:
        TARGETS["paper"],
