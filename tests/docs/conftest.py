"""The modules of docs/site import each other as neighbours, as they do when MkDocs loads its hooks."""

import sys
from pathlib import Path

SITE = Path(__file__).parents[2] / "docs" / "site"
sys.path.insert(0, str(SITE))
