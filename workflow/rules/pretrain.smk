# Embedded models come with `dvc pull data/models`; only where they are missing are they trained (minutes on a GPU).
# No code parameter: a change of the training code must not retrain models that results were published with.
rule pretrain:
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
        settings=protocol("real_images", "pretrain"),
    shell:
        "quest pretrain {wildcards.dataset} --settings {params.settings:q}"
        " --model {output.model} --extractor {output.extractor} > {log} 2>&1"


rule pretrain_all:
    input:
        expand([MODEL, EXTRACTOR], dataset=EMBEDDED),
