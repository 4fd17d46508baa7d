-- The requests of the lane `ingest` for wrk: 10 payloads of 150 B, 64 different bodies in turn.
--
--     wrk -t1 -c64 -d10s -s load.lua http://127.0.0.1:PORT/PATH -- collection|array
--
-- `collection` is the body that millrace and the Go design take. `array` holds the same payloads without the object around
-- them: Vector and Fluent Bit make one event of each of its elements, and one single event of a collection.
local BODIES, PAYLOADS, BYTES = 64, 10, 150
local bodies, turn = {}, 0

local function payload(random)
  local head = string.format('{"id":"%08x","ok":true,"items":[', random(0, 0xffffff))
  local items = {}
  for _ = 1, 2 do
    items[#items + 1] = string.format('{"at":%d,"kind":"view","value":%d.25}', random(1000000, 9999999), random(1, 99999))
  end
  local text = head .. table.concat(items, ",") .. '],"note":"'
  local filling = {}
  for _ = 1, BYTES - #text - 2 do
    filling[#filling + 1] = string.char(random(97, 122))
  end
  return text .. table.concat(filling) .. '"}'
end

function init(args)
  local form = args[1] or "collection"
  math.randomseed(1)
  for body = 1, BODIES do
    local payloads = {}
    for _ = 1, PAYLOADS do
      payloads[#payloads + 1] = payload(math.random)
    end
    local array = "[" .. table.concat(payloads, ",") .. "]"
    if form == "array" then
      bodies[body] = array
    else
      bodies[body] = '{"version":"1.0","token":"0123456789abcdef","data":' .. array .. "}"
    end
  end
  local requests = {}
  for body = 1, BODIES do
    requests[body] = wrk.format("POST", nil, { ["content-type"] = "application/json" }, bodies[body])
  end
  bodies = requests
end

function request()
  turn = turn % BODIES + 1
  return bodies[turn]
end
