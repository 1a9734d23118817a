-- Puts the name into the body of a try by which its endpoint knows the model: what envoy/modules/rename.c does, where no
-- module can be loaded.

local function planned(handle)
  local told = handle:headers():get("x-matrixinfer-rename")
  if told ~= nil then
    handle:headers():remove("x-matrixinfer-rename")
    local start, length, name = string.match(told, '^(%d+):(%d+) (".*")$')
    return tonumber(start), tonumber(length), name
  end
  local metadata = handle:streamInfo():dynamicMetadata()
  local names, served = metadata:get("matrixinfer.names"), metadata:get("matrixinfer.served")
  if names == nil or names["span"] == nil or served == nil or served["host"] == nil then
    return nil
  end
  local start, length = string.match(names["span"], "^(%d+):(%d+)$")
  return tonumber(start), tonumber(length), names[served["host"]]
end

function envoy_on_request(handle)
  local start, length, name = planned(handle)
  if start == nil or length == nil or name == nil then
    return
  end
  local body = handle:body()
  if body == nil or start + length > body:length() then
    return
  end
  local after = start + length
  local rest = ""
  if after < body:length() then
    rest = body:getBytes(after, body:length() - after)
  end
  local before = ""
  if start > 0 then
    before = body:getBytes(0, start)
  end
  local size = body:setBytes(before .. name .. rest)
  handle:headers():replace("content-length", tostring(size))
end
