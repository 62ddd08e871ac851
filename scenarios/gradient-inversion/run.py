"""The same experiment through the Python API, for whoever wants to change it.

``python run.py`` runs it as it is; ``python run.py training.rounds=2`` overrides values as ``--set`` does.
"""

import sys
from pathlib import Path

import fedsec
from fedsec.audit.study import run_study
from fedsec.audit.study_report import print_study

if __name__ == "__main__":
    scenario = fedsec.Scenario.load(Path(__file__).parent, sys.argv[1:])
    study = run_study(scenario)
    for result in study.runs:
        for entry in result.rounds:
            print(f"round {entry.round}: {entry.accuracy:.2%} from {entry.included} hospitals")
    print_study(study.summary())
