"""`python -m sklearn_cryoem.cli` is `sklearn-cryoem`."""

import sys

from sklearn_cryoem.cli.main import main

sys.exit(main())
