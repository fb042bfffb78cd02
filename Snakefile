# QuEST as a pipeline: from pretrained diffusion models to tables of their low-bit versions, one file a result.
# What to run: config/. How to run: profiles/. How a stage runs: workflow/rules/. `snakemake -n` shows what is missing.
from snakemake.utils import min_version

min_version("9.27")


configfile: "config/config.yaml"


# Jobs run in the environment that runs Snakemake, pinned by constraints.txt. Only `--sdm apptainer` reads this line;
# quest then has to be installed on the image.
container: "docker://python:3.11"


include: "workflow/rules/common.smk"


wildcard_constraints:
    dataset=one_of(CONFIG.datasets),
    method=one_of([FULL_PRECISION, *METHODS]),
    bits=r"w\d+a\d+",
    weight_bits=r"\d+",
    variant=one_of(VARIANTS),
    seed=r"\d+",
    shard=r"\d+",
    study=one_of(STUDIES),


include: "workflow/rules/pretrain.smk"
include: "workflow/rules/reference.smk"
include: "workflow/rules/calibrate.smk"
include: "workflow/rules/reconstruct.smk"
include: "workflow/rules/finetune.smk"
include: "workflow/rules/sample.smk"
include: "workflow/rules/measure.smk"
include: "workflow/rules/table.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/track.smk"
include: "workflow/rules/analyse.smk"


rule all:
    default_target: True
    input:
        rules.table_all.input,
        rules.figures_all.input,
        rules.track_all.input,
        rules.score_all.input,


# The paper's studies, beside the tables: `snakemake analyses`.
rule analyses:
    input:
        rules.analyse_all.input,
