"""What a run found, for people and for machines: text, JSON, SARIF, one HTML page, a diff."""
