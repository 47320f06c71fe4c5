-- Update checks: of one device with TOKEN, else of 20,000 devices in turn; VERSION is what they run.
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local token, device, version = os.getenv("TOKEN"), os.getenv("DEVICE"), os.getenv("VERSION") or "v1.3"
if token then wrk.headers["Authorization"] = "Bearer " .. token end
local rest = '","current_version":"' .. version ..
  '","env":{"free_bytes":9000000000,"net":"wifi","charging":true,"battery":80}}'
local count = 0
request = function()
  count = count + 1
  return wrk.format(nil, nil, nil, '{"device_id":"' .. (device or "dev_" .. count % 20000) .. rest)
end
