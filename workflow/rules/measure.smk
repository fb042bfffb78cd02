# Metrics of a cell, gathered from all its shards: against the real images, and image by image against full precision.
rule measure:
    input:
        samples=lambda wildcards: shards(wildcards, wildcards.method, wildcards.bits),
        full_precision=lambda wildcards: shards(wildcards, FULL_PRECISION, UNQUANTIZED),
        reference=paths.REFERENCE,
        extractor=extractor,
        checkpoint=checkpoint_of,
        model=model,
        clip=clip_model,
        prompts=clip_prompts,
    output:
        paths.METRICS,
    log:
        f"logs/measure/{{dataset}}/{paths.CELL}.log",
    benchmark:
        f"benchmarks/measure/{{dataset}}/{paths.CELL}.tsv"
    resources:
        gpu=GPU,
        mem_mb=8_000,
        runtime=240,
    params:
        settings=protocol("evaluation"),
        code=code("quest.metrics.measure"),
        full_precision=option("full-precision"),
        checkpoint=option("checkpoint"),
    shell:
        "quest measure {wildcards.dataset} {input.samples} --settings {params.settings:q} {params.full_precision}"
        " --reference {input.reference} --extractor {input.extractor} {params.checkpoint} --model {input.model}"
        " --output {output} > {log} 2>&1"


rule measure_all:
    input:
        everywhere(paths.METRICS, CELLS),


# A cell's numbers for `dvc metrics`: a row a file.
rule score:
    input:
        paths.METRICS,
    output:
        paths.SCORES,
    log:
        f"logs/score/{{dataset}}/{paths.CELL}.log",
    benchmark:
        f"benchmarks/score/{{dataset}}/{paths.CELL}.tsv"
    resources:
        mem_mb=500,
        runtime=5,
    params:
        code=code("quest.report.tables"),
    shell:
        "quest score {input} --output {output} > {log} 2>&1"


rule score_all:
    input:
        everywhere(paths.SCORES, CELLS),
