/* Bytes of two 4-bit codes. Internal. */
#ifndef WPATCH_PAIRS_H
#define WPATCH_PAIRS_H

#include "steps.h"

#define PAIRS_TOKENS 49u /* two differences from -3 to 3; the token behind them says that the byte follows */
#define PAIRS_KEPT 256u  /* contexts of bytes whose groups both kept their scales: the base's byte */
#define PAIRS_CONTEXTS (PAIRS_KEPT + STEP_CLASSES * STEP_CLASSES)

#endif
