# QuEST as a pipeline: from pretrained diffusion models to tables of their low-bit versions, one file a result.
# What to run: config/. How to run: profiles/. How a stage runs: workflow/rules/. `snakemake -n` shows what is missing.
from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

from quest.config import ConfigError, run_file

min_version("9.27")

try:
    RUN_FILE = run_file(config.get("suite"))
except ConfigError as error:
    raise WorkflowError(str(error)) from None


configfile: RUN_FILE


report: "workflow/report/workflow.rst"


# Jobs run in the environment that runs Snakemake, pinned by constraints.txt. Only `--sdm apptainer` reads this line;
# quest then has to be installed on the image.
container: "docker://python:3.11"


include: "workflow/rules/common.smk"


wildcard_constraints:
    dataset=one_of(CONFIG.datasets),
    method=one_of([FULL_PRECISION, *METHODS, *CONFIG.variants]),
    bits=r"w\d+a\d+",
    weight_bits=r"\d+",
    variant=one_of(VARIANTS),
    seed=r"\d+",
    of_suite=re.escape(OF_SUITE) or "(?:)",  # an empty constraint would be none
    shard=r"\d+",
    study=one_of(STUDIES),


include: "workflow/rules/pretrain.smk"
include: "workflow/rules/import.smk"
include: "workflow/rules/bring.smk"
include: "workflow/rules/reference.smk"
include: "workflow/rules/calibrate.smk"
include: "workflow/rules/reconstruct.smk"
include: "workflow/rules/finetune.smk"
include: "workflow/rules/sample.smk"
include: "workflow/rules/measure.smk"
include: "workflow/rules/table.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/track.smk"
include: "workflow/rules/paper.smk"
include: "workflow/rules/analyse.smk"


rule all:
    default_target: True
    input:
        rules.table_all.input,
        rules.figures_all.input,
        rules.track_all.input,
        rules.score_all.input,
        rules.paper_all.input,


# The paper's studies, beside the tables: `snakemake analyses`.
rule analyses:
    input:
        rules.analyse_all.input,


onsuccess:
    # `dvc commit` wants every folder that DVC knows, also those of the studies and of the papers' tables, which the default
    # run leaves out.
    for folder in ("results/analysis", "results/paper"):
        Path(folder).mkdir(parents=True, exist_ok=True)
