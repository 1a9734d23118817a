-- Watches answers on their way to the client: stamps the first token, reads `usage`, hides usage that only the picker
-- asked for. Nothing is held back except the unfinished end of an event while hiding. Numbers are written as they come,
-- so that the access log has them when an engine dies or a client leaves.
--
-- Metadata read:    matrixinfer          usage_chunks: hide-all | hide-running
-- Metadata written: matrixinfer.usage    prompt_tokens, completion_tokens, cached_tokens, model
--                   matrixinfer.timing   first_token_ms: ms since the epoch
--
-- Bytes are searched, not parsed. That is safe because within a JSON string every quote is escaped: the bytes "usage"
-- with both quotes, a colon and a brace behind them, can only be a key.

local find, match, sub, byte = string.find, string.match, string.sub, string.byte

local KEY = '"usage"'
local OBJECT = "^%s*:%s*(%b{})()"
local PROMPT, COMPLETION = '"prompt_tokens"%s*:%s*(%d+)', '"completion_tokens"%s*:%s*(%d+)'
local INPUT, OUTPUT = '"input_tokens"%s*:%s*(%d+)', '"output_tokens"%s*:%s*(%d+)'
local CACHED = '"cached_tokens"%s*:%s*(%d+)'
local CACHE_READ = '"cache_read_input_tokens"%s*:%s*(%d+)'
local CACHE_WRITTEN = '"cache_creation_input_tokens"%s*:%s*(%d+)'
local MODEL = '"model"%s*:%s*"([^"\\]*)"'
local NO_CHOICES = '"choices"%s*:%s*%[%s*%]'

local LONGEST_USAGE = 16384 -- a usage object is some 100 bytes; what is longer is something else
local LONGEST_NAME = 512 -- of a model, with its key
local LONGEST_EVENT = 1048576 -- hiding stops at an event longer than this, rather than hold back more

-- Writes one value, unless it is there already.
local function put(seen, handle, key, value)
  if value ~= nil and seen[key] ~= value then
    seen[key] = value
    handle:streamInfo():dynamicMetadata():set("matrixinfer.usage", key, value)
  end
end

-- Normalises one usage object. Chat and completions count cached tokens into the prompt; so does Responses; Anthropic
-- counts what was read from and written to the cache apart from the input.
local function record(seen, handle, object)
  local completion = match(object, COMPLETION)
  if completion ~= nil then
    put(seen, handle, "completion_tokens", tonumber(completion))
    put(seen, handle, "prompt_tokens", tonumber(match(object, PROMPT)))
    put(seen, handle, "cached_tokens", tonumber(match(object, CACHED)))
    return
  end
  local prompt = tonumber(match(object, PROMPT)) -- embeddings complete nothing
  if prompt == nil then
    prompt = tonumber(match(object, INPUT))
    put(seen, handle, "completion_tokens", tonumber(match(object, OUTPUT)))
    local read, written = tonumber(match(object, CACHE_READ)), tonumber(match(object, CACHE_WRITTEN))
    if prompt ~= nil then
      prompt = prompt + (read or 0) + (written or 0)
    end
    put(seen, handle, "cached_tokens", read)
  end
  put(seen, handle, "prompt_tokens", prompt)
  put(seen, handle, "cached_tokens", tonumber(match(object, CACHED)))
end

-- Records every usage object in `text`; returns the end of `text` that may be the beginning of one.
local function observe(seen, handle, text)
  if seen.model == nil then
    put(seen, handle, "model", match(text, MODEL))
  end
  local from = 1
  while true do
    local start, stop = find(text, KEY, from, true)
    if start == nil then
      -- An event ended; or a word may have been cut: "usage", or the name that has not been seen yet.
      return byte(text, -1) == 10 and "" or sub(text, seen.model == nil and -LONGEST_NAME or -6)
    end
    local object, after = match(text, OBJECT, stop + 1)
    if object ~= nil then
      record(seen, handle, object)
      from = after
    elseif #text - start < LONGEST_USAGE and find(text, "^%s*:?%s*$", stop + 1) or find(text, "^%s*:%s*{", stop + 1) then
      return #text - start < LONGEST_USAGE and sub(text, start) or ""
    else
      from = stop + 1
    end
  end
end

-- Returns the end of the last complete event in `text`, 0 if there is none. An event ends with an empty line.
local function last_event(text)
  local last, from = 0, 1
  if sub(text, -2) == "\n\n" or sub(text, -4) == "\r\n\r\n" then
    return #text
  end
  while true do
    local _, stop = find(text, "\n\r?\n", from)
    if stop == nil then
      return last
    end
    last, from = stop, stop + 1
  end
end

-- Takes `usage` out of one event; nil if nothing is left that the client asked for.
local function without_usage(seen, handle, event, mode)
  local start, stop = find(event, KEY, 1, true)
  local object, after = match(event, OBJECT, stop + 1)
  if object == nil then
    return event
  end
  record(seen, handle, object)
  if find(event, NO_CHOICES) then
    return mode == "hide-running" and event or nil
  end
  local before = match(sub(event, 1, start - 1), "^(.*),%s*$")
  if before ~= nil then
    return before .. sub(event, after)
  end
  return sub(event, 1, start - 1) .. (match(event, "^%s*,%s*(.*)$", after) or sub(event, after))
end

-- Rewrites complete events.
local function hide(seen, handle, text, mode)
  if seen.model == nil then
    put(seen, handle, "model", match(text, MODEL))
  end
  if not find(text, KEY, 1, true) then
    return text
  end
  local kept, from = {}, 1
  while from <= #text do
    local _, stop = find(text, "\n\r?\n", from)
    local event = sub(text, from, stop)
    from = stop + 1
    if find(event, KEY, 1, true) then
      event = without_usage(seen, handle, event, mode)
    end
    kept[#kept + 1] = event
  end
  return table.concat(kept)
end

function envoy_on_response(handle)
  local headers = handle:headers()
  if headers:get(":status") == "503" then
    -- Envoy asks for other credentials also where it only cannot get the keys to check these.
    headers:remove("www-authenticate")
  end
  local kind = headers:get("content-type")
  if kind == nil or headers:get("content-encoding") ~= nil or byte(headers:get(":status")) ~= 50 then
    return
  end
  local mode
  if find(kind, "text/event-stream", 1, true) then
    local decided = handle:streamInfo():dynamicMetadata():get("matrixinfer")
    mode = decided and decided["usage_chunks"]
    if mode ~= nil then
      headers:remove("content-length")
    end
  elseif not find(kind, "application/json", 1, true) then
    return
  end
  local seen, carry, stamped = {}, "", false
  for chunk in handle:bodyChunks() do
    local size = chunk:length()
    if size > 0 then
      if not stamped then
        stamped = true
        handle:streamInfo():dynamicMetadata():set("matrixinfer.timing", "first_token_ms", handle:timestamp())
      end
      local data = chunk:getBytes(0, size)
      if mode == nil then
        carry = observe(seen, handle, carry == "" and data or carry .. data)
      else
        local text = carry == "" and data or carry .. data
        local stop = last_event(text)
        carry = sub(text, stop + 1)
        local whole = hide(seen, handle, sub(text, 1, stop), mode)
        if #carry > LONGEST_EVENT then
          whole, carry, mode = whole .. carry, "", nil
        end
        if whole ~= data then
          chunk:setBytes(whole)
        end
      end
    elseif mode ~= nil and carry ~= "" then
      chunk:setBytes(carry)
      carry = ""
    end
  end
end
