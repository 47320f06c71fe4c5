"""Ask the service for its version and for an update, with nothing but HTTP, as the article does."""

import requests

resp = requests.get("http://localhost:8000/v1/model/info")
print("Current model version:", resp.json().get("version"))

update_resp = requests.post(
    "http://localhost:8000/v1/model/update", json={"device_id": "dev_12345", "current_version": "v1.2"}
)
if update_resp.status_code == 200:
    data = update_resp.json()
    if data["need_update"]:
        print(f"发现新版本 {data['target_version']},下载地址:{data['download_url']}")
    else:
        print("已是最新版本")
else:
    print("更新检查失败")
