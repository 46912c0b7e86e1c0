//! PLAIN (RFC 4616): user and password in one message, readable by whoever reads the wire.

/// The only message: no authorization identity, user, password.
///
/// # Errors
/// What is wrong, without the value: a zero byte ends a part of the message, so none may stand in one.
pub(super) fn message(username: &str, password: &str) -> Result<Vec<u8>, &'static str> {
    if username.contains('\0') {
        return Err("the user name has a zero byte in it");
    }
    if password.contains('\0') {
        return Err("the password has a zero byte in it");
    }
    Ok([b"\0", username.as_bytes(), b"\0", password.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_password_stand_between_zero_bytes_and_hold_none() {
        assert_eq!(message("user", "pässword").unwrap(), "\0user\0pässword".as_bytes());
        assert!(message("us\0er", "pencil-9").unwrap_err().contains("user name"));
        assert!(message("user", "pen\0cil-9").unwrap_err().contains("password"));
    }
}
