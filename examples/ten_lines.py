"""Train a network and classify a picture with it, in ten lines."""

import thumbnet

run = thumbnet.train("digits", overrides=["training.epochs=4"])
print(f"{run.summary['split']} accuracy {100 * run.summary['accuracy']:.2f} %, in {run.path}")

data = thumbnet.load_data("digits")
classifier = thumbnet.load_classifier(run.path)
picture = data.splits["test"].read(0)  # a PIL picture; a path, an array or a tensor would do
(prediction,) = classifier.predict(picture)
print(f"a {prediction.label}, with a probability of {prediction.probability:.2f}")
