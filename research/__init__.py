"""Studies: data, models, tasks and configs that train on real data through `loops`. Copy from here."""
