"""DynPT as a `PointTracker`."""
