"""The MLflow side: runs, registered models, gates, promotion and the ledger."""
