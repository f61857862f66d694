"""The pages that show a comparison and a replay."""
