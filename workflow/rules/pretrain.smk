# Embedded models come with `dvc pull data/models`; only where they are missing are they trained (minutes on a GPU).
# No code parameter: a change of the training code must not retrain models that results were published with.
rule pretrain:
    input:
        clip=lambda wildcards: ancient(CELLS.text_encoder(wildcards)),  # that it was pulled later says nothing
    output:
        model=MODEL,
        extractor=EXTRACTOR,
    log:
        "logs/pretrain/{dataset}.log",
    benchmark:
        "benchmarks/pretrain/{dataset}.tsv"
    wildcard_constraints:
        dataset=one_of(CELLS.trained_whole),
    threads: 2
    resources:
        gpu=GPU,
        mem_mb=memory(8_000),
        runtime=120,
    params:
        settings=CELLS.settings("pretrain"),
        clip=option("clip"),
    message:
        "train the full-precision model of {wildcards.dataset}"
    shell:
        "quest pretrain {wildcards.dataset:q} --settings {params.settings:q} {params.clip}"
        " --model {output.model:q} --extractor {output.extractor:q} > {log:q} 2>&1"


rule pretrain_all:
    input:
        TARGETS["pretrain"],
