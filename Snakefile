# QuEST as a pipeline: from pretrained diffusion models to tables of their low-bit versions, one file a result.
# What to run: config/. How to run: profiles/. How a stage runs: workflow/rules/. `snakemake -n` shows what is missing.
from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

from quest.config.run import run_file
from quest.config.values import ConfigError

min_version("9.27")

try:
    RUN_FILE = run_file(config.get("suite"))
except ConfigError as error:
    raise WorkflowError(str(error)) from None


configfile: RUN_FILE


# Jobs run in the environment that runs Snakemake, pinned by constraints.txt. Only `--sdm apptainer` reads this line;
# quest then has to be installed on the image.
container: "docker://python:3.11"


include: "workflow/rules/common.smk"


# What a person reads, and what reads it.
SHOWN = ["measure", "score", "preview", "table", "write_table", "figures", "track", "paper", "track_paper"]

RUN = CELLS.run
QUANTIZING = [*METHODS, *CELLS.config.variants]


wildcard_constraints:
    dataset=one_of(CELLS.datasets),
    method=one_of([FULL_PRECISION, *QUANTIZING]),
    bits=r"w\d+a\d+",
    weight_bits=r"\d+",
    grouping=one_of(GROUPINGS),
    policy=one_of(methods.policies()),
    seed=r"\d+",
    of_suite=re.escape(CELLS.of_suite) or "(?:)",  # an empty constraint would be none
    shard=r"\d+",
    study=one_of(STUDIES),


include: "workflow/rules/pretrain_clip.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/pretrain_denoiser.smk"
include: "workflow/rules/import_model.smk"
include: "workflow/rules/bring.smk"
include: "workflow/rules/reference.smk"
include: "workflow/rules/calibrate.smk"
include: "workflow/rules/reconstruct.smk"
include: "workflow/rules/finetune.smk"
include: "workflow/rules/sample.smk"
include: "workflow/rules/preview.smk"
include: "workflow/rules/measure.smk"
include: "workflow/rules/score.smk"
include: "workflow/rules/table.smk"
include: "workflow/rules/write_table.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/track.smk"
include: "workflow/rules/paper.smk"
include: "workflow/rules/track_paper.smk"
include: "workflow/rules/analyse.smk"


# Seconds of the machine that starts the run, which a cluster would take longer to queue.
localrules:
    all,
    analyses,
    bring,
    score,
    table,
    write_table,
    track,
    paper,
    track_paper,


rule all:
    default_target: True
    input:
        # Each by itself, so that one that was deleted is missed, whatever was made of it.
        [TARGETS[stage] for stage in SHOWN],


# The paper's studies, beside the tables: `snakemake analyses`.
rule analyses:
    input:
        rules.analyse_all.input,


onsuccess:
    records.collect(Path.cwd(), machine_of_jobs())


onerror:
    records.collect(Path.cwd(), machine_of_jobs())
