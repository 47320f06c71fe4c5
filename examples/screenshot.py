"""Show the model a screenshot and ask where to tap.

    python examples/screenshot.py screen.png 点击微信

It prints an action such as do(action="Tap", element=[512,73]); coordinates run from 0 to 999.
"""

import base64
import sys
from pathlib import Path

from openai import OpenAI

image, instruction = sys.argv[1:3]
url = "data:image/png;base64," + base64.b64encode(Path(image).read_bytes()).decode()

client = OpenAI(base_url="http://localhost:8000/v1", api_key="EMPTY")
answer = client.chat.completions.create(
    model="autoglm-phone-9b",
    temperature=0,
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": instruction},
            ],
        }
    ],
)
print(answer.choices[0].message.content)
