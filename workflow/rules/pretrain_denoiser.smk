# A denoiser on the first stage of another dataset's model; its extractor is that dataset's, too.
# No code parameter, as of pretrain.
rule pretrain_denoiser:
    input:
        first_stage=lambda wildcards: ancient(CELLS.first_stage(wildcards)),
    output:
        MODEL,
    log:
        "logs/pretrain_denoiser/{dataset}.log",
    benchmark:
        "benchmarks/pretrain_denoiser/{dataset}.tsv"
    wildcard_constraints:
        dataset=one_of(CELLS.sharing),
    threads: 2
    resources:
        gpu=GPU,
        mem_mb=memory(8_000),
        runtime=120,
    params:
        settings=CELLS.settings("pretrain_denoiser"),
    message:
        "train the full-precision denoiser of {wildcards.dataset}"
    shell:
        "quest pretrain-denoiser {wildcards.dataset:q} --settings {params.settings:q}"
        " --first-stage {input.first_stage:q} --model {output:q} > {log:q} 2>&1"


rule pretrain_denoiser_all:
    input:
        TARGETS["pretrain_denoiser"],
