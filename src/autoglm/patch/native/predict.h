/* PREDICTED: contexts and predictions from the product of factors. Internal. */
#ifndef WPATCH_PREDICT_H
#define WPATCH_PREDICT_H

#include "transform.h"

/* The checks of a PREDICTED part beyond those of every part. */
int plan_check_predicted(const wpatch_part *part);
void plan_predicted_contexts(const plan *p, chunk *c);

#endif
