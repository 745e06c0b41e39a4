"""Print medians, and their ratios to one tool's.

    python summary.py DIR [TOOL]

TOOL is ckptmerge if none is named. DIR holds hyperfine's results, one file TOOL.ROUND.json for each run.
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

def main(folder: str, reference: str = "ckptmerge") -> None:
    seconds = defaultdict(list)
    for path in Path(folder).glob("*.json"):
        tool = path.name.split(".")[0]
        seconds[tool] += json.loads(path.read_text())["results"][0]["times"]
    medians = {tool: statistics.median(times) for tool, times in seconds.items()}
    print(f"{'tool':22}{'median s':>10}{'min':>8}{'max':>8}{'runs':>6}{'ratio':>8}")
    for tool, median in sorted(medians.items(), key=lambda item: item[1]):
        times = seconds[tool]
        ratio = median / medians[reference]
        print(
            f"{tool:22}{median:10.3f}{min(times):8.3f}{max(times):8.3f}"
            f"{len(times):6}{ratio:8.2f}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
