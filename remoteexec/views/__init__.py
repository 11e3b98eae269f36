"""What users look at: the graph of calls, as a picture and as a workflow file."""

from __future__ import annotations
