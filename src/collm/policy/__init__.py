"""Exit criteria, controller, planner and cost model: pure functions, no I/O."""
