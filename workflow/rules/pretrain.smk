# Embedded models come with `dvc pull data/models`; only where they are missing are they trained (minutes on a GPU).
# No code parameter: a change of the training code must not retrain models that results were published with.
rule pretrain:
    input:
        clip=text_encoder,
    output:
        model=MODEL,
        extractor=EXTRACTOR,
    log:
        "logs/pretrain/{dataset}.log",
    benchmark:
        "benchmarks/pretrain/{dataset}.tsv"
    wildcard_constraints:
        dataset=one_of(EMBEDDED),
    threads: 2
    resources:
        gpu=GPU,
        mem_mb=8_000,
        runtime=120,
    params:
        settings=protocol("real_images", "condition", "pretrain"),
        clip=option("clip"),
    shell:
        "quest pretrain {wildcards.dataset} --settings {params.settings:q} {params.clip}"
        " --model {output.model} --extractor {output.extractor} > {log} 2>&1"


# What conditions an embedded model of prompts, and scores its images.
rule pretrain_clip:
    output:
        CLIP,
    log:
        "logs/pretrain_clip/{dataset}.log",
    benchmark:
        "benchmarks/pretrain_clip/{dataset}.tsv"
    wildcard_constraints:
        dataset=one_of(TEXT),
    threads: 2
    resources:
        gpu=GPU,
        mem_mb=8_000,
        runtime=60,
    params:
        settings=protocol("real_images", "pretrain"),
    shell:
        "quest pretrain-clip {wildcards.dataset} --settings {params.settings:q} --output {output} > {log} 2>&1"


rule pretrain_all:
    input:
        expand([MODEL, EXTRACTOR], dataset=EMBEDDED),
        expand(CLIP, dataset=TEXT),
