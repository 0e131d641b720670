"""The scripts of training/ import each other as neighbours, as they do when one of them is run."""

import sys
from pathlib import Path

TRAINING = Path(__file__).parents[2] / "training"
sys.path.insert(0, str(TRAINING))
