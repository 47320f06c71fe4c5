"""Training of the shipped model: data made by the project, stages, quantisation, evaluation."""
