# SPDX-License-Identifier: Apache-2.0
"""`python -m patchrec_fast.cli`, for places where scripts are not on the path."""

import sys

from .main import main

sys.exit(main())
