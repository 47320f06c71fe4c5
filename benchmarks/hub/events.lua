-- Reports of two new events each, of 20,000 devices in turn.
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local run, count = os.getenv("RUN") or "0", 0
local function event(id, state, result)
  return '{"event_id":"' .. id .. '","seq":' .. count .. ',"state":"' .. state .. '","result":"' .. result ..
    '","from":"v1.2","to":"v1.3","rollout_id":"r2","bytes":1000000,"stats":{"score":1.0,"tokens_per_s":24.5}}'
end
request = function()
  count = count + 1
  local id = run .. "-" .. count
  return wrk.format(nil, nil, nil, '{"device_id":"dev_' .. count % 20000 .. '","events":[' ..
    event(id .. "a", "TRIAL", "progress") .. "," .. event(id .. "b", "CONFIRMED", "ok") .. "]}")
end
