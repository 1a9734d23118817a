-- Runs for GET /v1/models only: says which of the served names the caller may use, for the picker to list. The same
-- conditions as those of the rbac filters, which decide; here they only choose what is shown.
local function has(values, value)
  for _, one in ipairs(values) do
    if type(value) == "table" then
      for _, item in ipairs(value) do
        if item == one then return true end
      end
    elseif value == one then
      return true
    end
  end
  return false
end

local function token(grant, tokens)
  for _, known in ipairs(grant["issuers"] or {}) do
    local payload = tokens[known["issuer"]]
    local good = payload ~= nil and (#known["audiences"] == 0 or has(known["audiences"], payload["aud"]))
    for _, claim in ipairs(grant["claims"] or {}) do
      local value = payload
      for _, key in ipairs(claim["path"]) do
        value = type(value) == "table" and value[key] or nil
      end
      good = good and has(claim["values"], value)
    end
    if good then return true end
  end
  return false
end

local function granted(grant, caller, tokens)
  if caller["tenant"] == nil then return false end
  if #grant["tenants"] > 0 and not has(grant["tenants"], caller["tenant"]) then return false end
  if caller["certificate"] == nil and token(grant, tokens) then return true end
  if #grant["claims"] > 0 then return false end
  if grant["certificates"] and caller["certificate"] ~= nil then return true end
  local client = caller["client"]
  return grant["keys"] and client ~= nil and client:find("," .. grant["policy"] .. ",", 1, true) ~= nil
end

function envoy_on_request(handle)
  local metadata = handle:streamInfo():dynamicMetadata()
  local caller = metadata:get("matrixinfer.access") or {}
  local tokens = metadata:get("envoy.filters.http.jwt_authn") or {}
  local allowed = {}
  for _, group in ipairs(handle:filterContext():get("groups") or {}) do
    local may = group["open"]
    for _, grant in ipairs(group["grants"]) do
      may = may or granted(grant, caller, tokens)
    end
    if may then
      for _, name in ipairs(group["models"]) do
        allowed[#allowed + 1] = name
      end
    end
  end
  if #allowed == 0 then allowed[1] = "" end
  metadata:set("matrixinfer.access", "models", allowed)
end
