# Images of a cell, scattered in shards; image i of a seed starts from the same noise in every cell.
rule sample:
    input:
        model=refusing(CELLS.model),
        checkpoint=CELLS.checkpoint,
        prompts=CELLS.prompts,
    output:
        paths.SAMPLES,
    log:
        f"logs/sample/{{dataset}}/{paths.CELL}.{{shard}}.log",
    benchmark:
        f"benchmarks/sample/{{dataset}}/{paths.CELL}.{{shard}}.tsv"
    resources:
        gpu=GPU,
        mem_mb=memory(8_000),
        runtime=1_440,
    params:
        settings=CELLS.settings("sample"),
        code=CELLS.sampling_code,
        checkpoint=option("checkpoint"),
    message:
        "sample {wildcards.dataset}, {wildcards.method} {wildcards.bits}, seed {wildcards.seed}, shard {wildcards.shard}"
    shell:
        "quest sample {wildcards.dataset:q} --settings {params.settings:q} --seed {wildcards.seed:q}"
        " --shard {wildcards.shard:q} --model {input.model:q} {params.checkpoint} --output {output:q} > {log:q} 2>&1"


rule sample_all:
    input:
        TARGETS["sample"],
