"""What the card does, against what it could do. Parts make their model folders with the tests' `tiny`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent.parent / "tests"))
