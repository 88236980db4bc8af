#!/usr/bin/env python3
"""Text in Prometheus's exposition format, from standard input -> what the text parser of
`prometheus_client` makes of it, as JSON: families, each with its samples. Buckets of histograms must
grow with their bounds, the last being +Inf and the count."""

import json
import sys

from prometheus_client.parser import text_string_to_metric_families


def described(family):
    samples = [
        {"name": sample.name, "labels": sample.labels, "value": sample.value}
        for sample in family.samples
    ]
    if family.type == "histogram":
        buckets = [
            (float(sample["labels"]["le"]), sample["value"])
            for sample in samples
            if sample["name"] == family.name + "_bucket"
        ]
        assert buckets == sorted(buckets), family.name
        assert [count for _, count in buckets] == sorted(count for _, count in buckets)
        assert buckets[-1][0] == float("inf"), family.name
        count = [one["value"] for one in samples if one["name"] == family.name + "_count"]
        assert [buckets[-1][1]] == count, family.name
    return {
        "name": family.name,
        "type": family.type,
        "help": family.documentation,
        "samples": samples,
    }


def main():
    families = text_string_to_metric_families(sys.stdin.read())
    print(json.dumps([described(family) for family in families]))


if __name__ == "__main__":
    main()
