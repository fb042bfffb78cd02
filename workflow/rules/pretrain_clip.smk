# What conditions an embedded model of prompts, and scores its images.
rule pretrain_clip:
    output:
        CLIP,
    log:
        "logs/pretrain_clip/{dataset}.log",
    benchmark:
        "benchmarks/pretrain_clip/{dataset}.tsv"
    wildcard_constraints:
        dataset=one_of(CELLS.of_prompts),
    threads: 2
    resources:
        gpu=GPU,
        mem_mb=memory(8_000),
        runtime=60,
    params:
        settings=CELLS.settings("pretrain_clip"),
    message:
        "train the CLIP model of {wildcards.dataset}"
    shell:
        "quest pretrain-clip {wildcards.dataset:q} --settings {params.settings:q} --output {output:q} > {log:q} 2>&1"


rule pretrain_clip_all:
    input:
        TARGETS["pretrain_clip"],
