"""Preference data: records, importers, the contract, splits, and the snapshot that DVC keeps."""
