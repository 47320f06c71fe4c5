"""Ask the service through LangChain, as the article does; only the address is yours to change."""

from langchain_openai import ChatOpenAI

chat_model = ChatOpenAI(
    model="autoglm-phone-9b",
    temperature=0.5,
    base_url="http://localhost:8000/v1",
    api_key="EMPTY",
    extra_body={
        "enable_thinking": True,
        "return_reasoning": True,
    },
    streaming=True,
)
response = chat_model.invoke("你是谁?")
print(response.content)
