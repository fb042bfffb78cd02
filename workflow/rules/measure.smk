# Metrics of a cell, gathered from all its shards: against the real images, and image by image against full precision.
rule measure:
    input:
        samples=CELLS.samples,
        full_precision=CELLS.full_precision,
        reference=paths.REFERENCE,
        extractor=CELLS.extractor,
        checkpoint=CELLS.checkpoint,
        model=refusing(CELLS.model),
        clip=CELLS.clip_model,
        prompts=CELLS.clip_prompts,
    output:
        paths.METRICS,
    log:
        f"logs/measure/{{dataset}}/{paths.CELL}.log",
    benchmark:
        f"benchmarks/measure/{{dataset}}/{paths.CELL}.tsv"
    resources:
        gpu=GPU,
        mem_mb=memory(8_000),
        runtime=240,
    params:
        settings=CELLS.settings("measure"),
        code=CELLS.code("measure"),
        full_precision=option("full-precision"),
        checkpoint=option("checkpoint"),
    message:
        "measure {wildcards.dataset}, {wildcards.method} {wildcards.bits}, seed {wildcards.seed}"
    shell:
        "quest measure {wildcards.dataset:q} {input.samples:q} --settings {params.settings:q} {params.full_precision}"
        " --reference {input.reference:q} --extractor {input.extractor:q} {params.checkpoint} --model {input.model:q}"
        " --output {output:q} > {log:q} 2>&1"


rule measure_all:
    input:
        TARGETS["measure"],
