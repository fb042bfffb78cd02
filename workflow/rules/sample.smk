# Images of a cell, scattered in shards; image i of a seed starts from the same noise in every cell.
rule sample:
    input:
        model=model,
        checkpoint=checkpoint_of,
        prompts=prompts,
    output:
        paths.SAMPLES,
    log:
        f"logs/sample/{{dataset}}/{paths.CELL}.{{shard}}.log",
    benchmark:
        f"benchmarks/sample/{{dataset}}/{paths.CELL}.{{shard}}.tsv"
    resources:
        gpu=GPU,
        mem_mb=8_000,
        runtime=1_440,
    params:
        settings=protocol(
            "sampler",
            "condition",
            "evaluation.images",
            "evaluation.shards",
            "evaluation.batch_size",
        ),
        code=code("quest.diffusion.sampling"),
        checkpoint=option("checkpoint"),
    shell:
        "quest sample {wildcards.dataset} --settings {params.settings:q} --seed {wildcards.seed}"
        " --shard {wildcards.shard} --model {input.model} {params.checkpoint} --output {output} > {log} 2>&1"


rule sample_all:
    input:
        everywhere(paths.SAMPLES, CELLS),
