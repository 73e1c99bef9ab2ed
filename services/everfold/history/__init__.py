"""The history service: owns history shards, folds their logs, keeps mutable state, fires timers."""
