# Feature statistics of a dataset's real images: what the metrics compare with.
rule reference:
    input:
        extractor=extractor,
        batch=reference_batch,
    output:
        paths.REFERENCE,
    log:
        "logs/reference/{dataset}.log",
    benchmark:
        "benchmarks/reference/{dataset}.tsv"
    resources:
        gpu=GPU,
        mem_mb=4_000,
        runtime=60,
    params:
        settings=protocol("real_images", "reference_images", "reference_batch", "reference_sha256"),
        code=code("quest.metrics.reference"),
    shell:
        "quest reference {wildcards.dataset} --settings {params.settings:q}"
        " --extractor {input.extractor} --output {output} > {log} 2>&1"


rule reference_all:
    input:
        everywhere(paths.REFERENCE),
