# Feature statistics of a dataset's real images: what the metrics compare with.
rule reference:
    input:
        extractor=CELLS.extractor,
        batch=CELLS.reference_batch,
    output:
        paths.REFERENCE,
    log:
        "logs/reference/{dataset}.log",
    benchmark:
        "benchmarks/reference/{dataset}.tsv"
    resources:
        gpu=GPU,
        mem_mb=memory(4_000),
        runtime=60,
    params:
        settings=CELLS.settings("reference"),
        code=CELLS.code("reference"),
    message:
        "statistics of the real images of {wildcards.dataset}"
    shell:
        "quest reference {wildcards.dataset:q} --settings {params.settings:q}"
        " --extractor {input.extractor:q} --output {output:q} > {log:q} 2>&1"


rule reference_all:
    input:
        TARGETS["reference"],
