"""Your own recipe, from a file and from Python, and its result compared with the built-in one."""

from pathlib import Path

import thumbnet

mine = thumbnet.load_recipe(Path(__file__).with_name("my_recipe.toml"))
wider = mine.override(["model.width=1.5", "seed=1"])
print(wider.to_toml())

for recipe in (mine, thumbnet.load_recipe("digits", ["training.epochs=3"])):
    run = thumbnet.train("digits", recipe)
    print(f"{recipe.name}: {100 * run.summary['accuracy']:.2f} %, {run.path}")
print("thumbnet compare runs/*  shows them side by side")
