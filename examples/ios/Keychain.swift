import Foundation
import Security

/// The device's token in the Keychain: the two calls of the SDK's `TokenStore`, for the app's bridge to Python.
struct Keychain {
    let service: String

    func load() -> String? {
        var query = item
        query[kSecReturnData as String] = true
        var found: CFTypeRef?
        guard SecItemCopyMatching(query as CFDictionary, &found) == errSecSuccess, let data = found as? Data
        else { return nil }
        return String(data: data, encoding: .utf8)
    }

    func save(_ token: String) -> Bool {
        SecItemDelete(item as CFDictionary)
        var added = item
        added[kSecValueData as String] = Data(token.utf8)
        // Readable while the phone is locked, which is when updates run; never part of a backup.
        added[kSecAttrAccessible as String] = kSecAttrAccessibleAfterFirstUnlockThisDeviceOnly
        return SecItemAdd(added as CFDictionary, nil) == errSecSuccess
    }

    private var item: [String: Any] {
        [
            kSecClass as String: kSecClassGenericPassword,
            kSecAttrService as String: service,
            kSecAttrAccount as String: "token",
        ]
    }
}
