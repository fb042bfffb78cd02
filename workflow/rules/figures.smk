# Pictures of a dataset: the same seeds under every cell, quality by bit-width, and against size and cost.
rule figures:
    input:
        previews=lambda wildcards: CELLS.previews(wildcards.dataset),
        table=paths.TABLE,
    output:
        grid=paths.SAMPLE_GRID,
        comparison=paths.COMPARISON,
        tradeoff=TRADEOFF,
    log:
        "logs/figures/{dataset}{of_suite}.log",
    benchmark:
        "benchmarks/figures/{dataset}{of_suite}.tsv"
    resources:
        mem_mb=memory(2_000),
        runtime=10,
    params:
        code=CELLS.code("figures", *TITLES),
    message:
        "pictures of {wildcards.dataset}{wildcards.of_suite}"
    shell:
        "quest figures {wildcards.dataset:q} {input.previews:q} --table {input.table:q}"
        " --grid {output.grid:q} --comparison {output.comparison:q} --tradeoff {output.tradeoff:q}"
        " > {log:q} 2>&1"


rule figures_all:
    input:
        TARGETS["figures"],
